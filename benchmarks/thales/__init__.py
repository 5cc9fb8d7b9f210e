"""What Resiliency Accuracy is compared with: networks and estimators of Tyagi et al., arXiv 2212.02649."""
