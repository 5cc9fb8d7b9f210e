"""Where lanes run beside this process: on other cores and other machines, with the very results of a run alone."""

from torchfault.cluster.processes import Processes
from torchfault.cluster.ray import Ray
from torchfault.cluster.slurm import Slurm

__all__ = ["Processes", "Ray", "Slurm"]
