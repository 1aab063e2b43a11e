"""Files that outlive a process: atomic writes, one writer at a time, and nothing read before it is checked."""
