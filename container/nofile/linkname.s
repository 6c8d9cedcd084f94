// A function without a body is allowed only in a package with assembly.
