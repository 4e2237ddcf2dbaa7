"""How batches are loaded: workers, shares of the ranks, samplers, and copies to the device."""
