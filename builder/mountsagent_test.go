package builder

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func writeKey(t *testing.T, key any, phrase string) string {
	t.Helper()
	var block *pem.Block
	var err error
	if phrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(phrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testKeys(t *testing.T) (paths []string) {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return []string{writeKey(t, ed, ""), writeKey(t, ec, ""), writeKey(t, rs, "")}
}

// talk serves a connection of a and gives a client of it.
func talk(t *testing.T, a *Agent) agent.ExtendedAgent {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	go func() {
		a.serve(theirs)
		theirs.Close()
	}()
	return agent.NewClient(ours)
}

// mustSign lists n keys, and signs with each in every way.
func mustSign(t *testing.T, client agent.ExtendedAgent, n int) {
	t.Helper()
	keys, err := client.List()
	if err != nil || len(keys) != n {
		t.Fatalf("%d keys: %v", len(keys), err)
	}
	for _, k := range keys {
		public, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			t.Fatal(err)
		}
		for flags, want := range map[agent.SignatureFlags]string{0: "ssh-rsa", agent.SignatureFlagRsaSha256: "rsa-sha2-256", agent.SignatureFlagRsaSha512: "rsa-sha2-512"} {
			if public.Type() != ssh.KeyAlgoRSA && flags != 0 {
				continue // not every agent takes them
			}
			sig, err := client.SignWithFlags(public, []byte("data"), flags)
			if err != nil {
				t.Fatalf("%s, flags %d: %v", public.Type(), flags, err)
			}
			if public.Type() != ssh.KeyAlgoRSA {
				want = public.Type()
			}
			if err := public.Verify([]byte("data"), sig); err != nil || sig.Format != want {
				t.Errorf("%s, flags %d: a signature of %s: %v", public.Type(), flags, sig.Format, err)
			}
		}
	}
}

// mustRefuse wants an agent to be changed.
func mustRefuse(t *testing.T, client agent.ExtendedAgent) {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	public, _ := ssh.NewPublicKey(key.Public())
	_, extension := client.Extension("session-bind@openssh.com", nil)
	_, unknown := client.Sign(public, []byte("data"))
	for what, err := range map[string]error{
		"add": client.Add(agent.AddedKey{PrivateKey: key}), "remove all": client.RemoveAll(), "lock": client.Lock([]byte("x")),
		"unlock": client.Unlock([]byte("x")), "remove": client.Remove(public), "extension": extension, "sign with an unknown key": unknown,
	} {
		if err == nil {
			t.Errorf("%s was done", what)
		}
	}
}

func TestAgentOfKeys(t *testing.T) {
	a, err := OpenAgent(testKeys(t))
	if err != nil {
		t.Fatal(err)
	}
	client := talk(t, a)
	mustSign(t, client, 3)
	mustRefuse(t, client)
	mustSign(t, client, 3)
}

func TestAgentOfSocket(t *testing.T) {
	keyring := agent.NewKeyring()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	if err := keyring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { agent.ServeAgent(keyring, conn); conn.Close() }()
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", path)
	a, err := OpenAgent(nil)
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, talk(t, a), 1)
	mustRefuse(t, talk(t, a))
	if keys, _ := keyring.List(); len(keys) != 1 {
		t.Errorf("the caller's agent has %d keys", len(keys))
	}
	mustSign(t, talk(t, a), 1)

	l.Close()
	if _, err := OpenAgent([]string{path}); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("an agent that is away: %v", err)
	}
	if _, err := OpenAgent([]string{path, path}); err == nil {
		t.Error("two sockets were taken")
	}
}

func TestOpenAgentRefuses(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	t.Setenv("SSH_AUTH_SOCK", "")
	for want, paths := range map[string][]string{
		"make sure SSH_AUTH_SOCK is set": nil,
		"no such file":                   {filepath.Join(t.TempDir(), "x")},
		"has a passphrase":               {writeKey(t, key, "phrase")},
		"failed to parse":                {"mountsagent_test.go"},
	} {
		if _, err := OpenAgent(paths); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", paths, err, want)
		}
	}
}

// A step that talks nonsense ends its connection, and nothing else.
func FuzzAgentServe(f *testing.F) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		f.Fatal(err)
	}
	a := &Agent{keys: []agentKey{{signer, "x"}}}
	f.Add([]byte{0, 0, 0, 1, 11})
	f.Add([]byte{0, 0, 0, 1, 11, 0, 0, 0, 5, 13, 0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 13})
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() {
			a.serve(theirs)
			theirs.Close()
		}()
		go io.Copy(io.Discard, ours)
		ours.Write(said)
		ours.Close()
	})
}
