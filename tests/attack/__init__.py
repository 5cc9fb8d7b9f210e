"""What an adversary, a broken machine or chance may do to a user of torchfault."""
