"""What people use today, written anew or loaded, where it takes more than a few lines."""
