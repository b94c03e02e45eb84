"""FCPTS: thresholds that learn how much each layer gives up, at an exactly met global rate."""
