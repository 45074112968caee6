"""Published formats that become diffusers folders."""
