"""What gateway and nodes agree on, and who decides: records, store, plan, scale, controller."""
