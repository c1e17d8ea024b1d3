"""Models of cost and capacity: what a training, a data set and a cluster would take."""
