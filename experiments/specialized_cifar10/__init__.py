"""Small specialized students of CIFAR-10: what `ebjr demo --task specialized` ships."""
