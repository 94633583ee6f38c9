"""After an audit: leave flagged records out of a data set, or take a backdoor out of a model."""
