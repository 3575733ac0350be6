"""Bytes between machines: messages, frames, tensors, codecs and identities, without any input or output."""
