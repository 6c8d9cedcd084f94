package snapshot

func runJob(job string) {}
