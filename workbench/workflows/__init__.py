"""What a person does with the workbench, one file each. The command line and the notebooks call these."""
