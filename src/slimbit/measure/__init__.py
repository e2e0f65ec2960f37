"""MEASURE: what a network costs, on paper and on hardware."""
