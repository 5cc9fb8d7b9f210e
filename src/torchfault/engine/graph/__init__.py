"""The graph executor: lanes swept through a captured program in one growing batch."""
