"""All that knows torch's own quantisation (``torch.ao``, deprecated by torch): this folder can be deleted whole."""
