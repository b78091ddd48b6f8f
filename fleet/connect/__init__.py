"""Ways in from other systems: model registries, webhooks, CI templates."""
