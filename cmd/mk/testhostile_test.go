package main

// Images that are made to break out: attacks.md has the cases by number.

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// hostile FILE KIND
// writes a docker archive with the image hostile:KIND, whose layers try to reach $WORK/outside:
//
//	dotdot     1, 2   names that climb
//	chain      3      a chain of forty links that leads out, and writes through it
//	hardlink   4      hard links to files outside
//	ancestor   5, 6   an earlier layer's link as ancestor of files, whiteouts, opaque marks and hard links
//	passwd     7      /etc/passwd and /etc/group are links out
//	fifo       7      they are a FIFO and a directory
//	resolv     7      what mk itself writes into containers is links out
//	sparse     9      a file of a terabyte that is a hole
//	deep       9      a path of two thousand directories
//	devices    12     devices, setuid files, trusted and security attributes
//	links      39     links out where -o and export would write
func cmdHostile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: hostile FILE KIND")
	}
	out := theScript(ts).work + "/outside"
	layers, ok := hostileLayers(out)[args[1]]
	if !ok {
		ts.Fatalf("no attack is called %q", args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), dockerArchive("hostile:"+args[1], layers), 0o644))
}

func hostileLayers(out string) map[string][][]byte {
	const up = "../../../../../../../../../../../.."
	file := func(name, content string) *tarEntry {
		return &tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content}
	}
	of := func(kind byte, name, link string) *tarEntry {
		return &tarEntry{tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o755}, ""}
	}
	link := func(name, target string) *tarEntry { return of(tar.TypeSymlink, name, target) }
	chain := []*tarEntry{link("l0", up+out)}
	for i := 1; i < 40; i++ {
		chain = append(chain, link(fmt.Sprint("l", i), fmt.Sprint("./l", i-1)))
	}
	setuid, node, marked := file("su", "x"), of(tar.TypeChar, "null", ""), file("cap", "x")
	setuid.Mode, node.Devmajor, node.Devminor = 0o4755, 1, 3
	marked.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	return map[string][][]byte{
		"dotdot":   {tarOf(file(up+out+"/new", "new"))},
		"chain":    {tarOf(chain...), tarOf(file("l39/new", "new"), file("l39/victim", "changed"))},
		"hardlink": {tarOf(of(tar.TypeLink, "h", up+out+"/victim"), file("h", "changed"))},
		"ancestor": {tarOf(link("etc", out)), tarOf(file("etc/new", "new"), file("etc/.wh.victim", ""), file("etc/.wh..wh..opq", ""),
			of(tar.TypeLink, "etc/hard", "etc/new"), link("etc/victim", "/nowhere"))},
		"passwd":  {tarOf(link("etc/passwd", out+"/victim"), link("etc/group", up+out+"/victim"))},
		"fifo":    {tarOf(of(tar.TypeFifo, "etc/passwd", ""), of(tar.TypeDir, "etc/group/", ""))},
		"resolv":  {tarOf(link("etc/resolv.conf", out+"/victim"), link("etc/hosts", up+out+"/victim"), link("etc/hostname", out+"/new"), link("etc/mtab", out+"/new"))},
		"sparse":  {sparseTar()},
		"deep":    {tarOf(file(strings.Repeat("d/", 2000)+"x", "x"))},
		"devices": {tarOf(setuid, node, marked, of(tar.TypeBlock, "sda", ""))},
		"links":   {tarOf(link("new", out+"/new"), link("d", out), file("f", "f")), tarOf(file("d2/f", "f"), link("d2/up", up+out))},
	}
}

type tarEntry struct {
	tar.Header
	content string
}

func tarOf(entries ...*tarEntry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			panic(err)
		}
		w.Write([]byte(e.content))
	}
	w.Close()
	return b.Bytes()
}

// sparseTar is a GNU sparse file of 1 TiB that has no data.
func sparseTar() []byte {
	raw := tarOf(&tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: "hole", Mode: 0o644, Format: tar.FormatGNU}, ""})
	raw[156] = 'S'
	copy(raw[483:495], []byte{0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0})
	copy(raw[148:156], "        ")
	sum := 0
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

func dockerArchive(name string, layers [][]byte) []byte {
	var diffIDs, files []string
	var entries []*tarEntry
	add := func(name string, content []byte) {
		entries = append(entries, &tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, string(content)})
	}
	for i, l := range layers {
		diffIDs = append(diffIDs, fmt.Sprintf("sha256:%x", sha256.Sum256(l)))
		files = append(files, fmt.Sprintf("layer%d.tar", i))
		add(files[i], l)
	}
	config, _ := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}})
	add("config.json", config)
	manifest, _ := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": files}})
	add("manifest.json", manifest)
	return tarOf(entries...)
}
