"""The model server inside an image. Its modules live in a package so that no module of a user can meet their names."""
