"""Proves that every level of the accelerator computes and takes the same."""
