"""The benchmark harness of Vessel."""
