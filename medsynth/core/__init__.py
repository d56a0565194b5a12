"""What every layer knows: quantities, volumes, the generator contract, metrics, errors."""
