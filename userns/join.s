// Empty: it lets join.go have functions without bodies, which are the runtime's.
