"""Makes the starting policy: a new or given model, tuned on demonstrations or taken as it is."""
