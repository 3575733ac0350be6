"""Low-communication training on anyone's own loop: what `farflung.LowCommunication` is made of."""
