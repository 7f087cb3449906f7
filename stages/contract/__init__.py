"""What passes between the rooms: paths, tables, weights, manifests, metrics, seeds, errors."""
