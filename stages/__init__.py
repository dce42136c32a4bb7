"""The science, in the order the data flows: images, sensing, reflection, introspection, uses."""
