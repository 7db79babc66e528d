"""What the gateway process needs of the machine that it runs on."""
