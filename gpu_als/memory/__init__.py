"""How much memory a fit takes on host and device, worked out from shapes alone."""
