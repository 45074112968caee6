"""Image–text matching: which caption fits an image, which image fits a caption, and where each word looked."""
