"""What needs torch: world models, algorithms and export."""
