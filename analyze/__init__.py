"""From a trace to the state of the direct map at any moment, and whose doing it is."""
