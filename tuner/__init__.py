"""Find a learning rate and its schedule, record every loss curve, and prove what was found."""
