"""What both estimators do with what a fit has found."""
