"""Short clips of a planar arm that pushes blocks: frames, depth, segmentation, poses, contacts, actions and words."""
