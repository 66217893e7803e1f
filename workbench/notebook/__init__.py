"""What only notebooks need: display, previews, opened evaluations, the gallery, the widget browser, surgery."""
