// Hello says where it runs: alone.
package main

import (
	"fmt"
	"os"
)

func main() {
	entries, err := os.ReadDir("/")
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
	files := 0
	for _, e := range entries {
		if e.Type().IsRegular() {
			files++
		}
	}
	fmt.Printf("hello from Go, with %d file in the image\n", files)
}
