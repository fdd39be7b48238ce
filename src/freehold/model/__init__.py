"""What people declare and what was observed: typed, frozen data, no I/O."""
