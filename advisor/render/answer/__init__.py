"""An Advice as a page: what is said, in which order, for every form it is shown in."""
