"""Memory of one device: what stands, what comes and goes, the peak with its band, the verdict."""
