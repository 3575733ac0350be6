"""The mathematics of learning as pure functions over named tensors."""
