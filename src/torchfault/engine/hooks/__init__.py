"""The hooks executor: full forward passes of any module, in which every lane has its own faults."""
