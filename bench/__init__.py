"""What durability costs, measured over real HTTP beside the app without it. See README.md."""
