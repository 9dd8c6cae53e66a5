"""Robots behind one interface: observe, command, close."""
