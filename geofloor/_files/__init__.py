"""Files that outlive a process: written atomically by one writer at a time, and checked when read."""
