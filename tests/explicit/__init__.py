"""ExplicitALS as a user meets it."""
