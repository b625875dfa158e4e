"""Classes at pixels by their names: GEM and the methods of Le, *Language-based segmentation*."""
