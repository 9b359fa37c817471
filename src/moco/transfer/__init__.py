"""Transfer: detection, segmentation, keypoints and dense pose, fine-tuned from a pre-trained trunk."""
