"""Public releases as annotation files: COCO, Flickr30k, NLVR2, Visual Genome, VQA, CC3M, SBU."""
