package sbom

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// PredicateType is that of an in-toto statement whose predicate is SPDX.
const PredicateType = "https://spdx.dev/Document"

// URL is the package's URL: pkg:deb/debian/bash@5.2?arch=amd64&distro=debian-13
// (https://github.com/package-url/purl-spec).
func (p Package) URL() string {
	var b strings.Builder
	b.WriteString("pkg:" + p.Type)
	for _, part := range strings.Split(p.Namespace, "/") {
		if part != "" {
			b.WriteString("/" + escape(part))
		}
	}
	b.WriteString("/" + escape(p.Name))
	if p.Version != "" {
		b.WriteString("@" + escape(p.Version))
	}
	sep := "?"
	for _, q := range [][2]string{{"arch", p.Arch}, {"distro", p.Distro}, {"epoch", p.Epoch}, {"upstream", p.Upstream}} {
		if q[1] != "" {
			b.WriteString(sep + q[0] + "=" + escape(q[1]))
			sep = "&"
		}
	}
	return b.String()
}

// escape is the escaping of package URLs: all but letters, digits and ".-_~:".
func escape(s string) string {
	return strings.NewReplacer("+", "%20", "%3A", ":").Replace(url.QueryEscape(s))
}

// The parts of SPDX 2.3 that are written (https://spdx.github.io/spdx-spec/v2.3/).
type (
	spdxDocument struct {
		SPDXID            string             `json:"SPDXID"`
		Version           string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
		Comment  string   `json:"comment,omitempty"`
	}
	spdxPackage struct {
		SPDXID           string         `json:"SPDXID"`
		Name             string         `json:"name"`
		VersionInfo      string         `json:"versionInfo,omitempty"`
		Supplier         string         `json:"supplier,omitempty"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		Homepage         string         `json:"homepage,omitempty"`
		SourceInfo       string         `json:"sourceInfo,omitempty"`
		LicenseConcluded string         `json:"licenseConcluded"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		LicenseComments  string         `json:"licenseComments,omitempty"`
		CopyrightText    string         `json:"copyrightText"`
		ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
		Purpose          string         `json:"primaryPackagePurpose,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const (
	unknown = "NOASSERTION"
	rootID  = "SPDXRef-DocumentRoot-Image"
)

// SPDX writes the inventory of what has that name as a document of SPDX 2.3 in JSON.
// Equal inventories with equal names and times have equal bytes.
func (v Inventory) SPDX(name string, created time.Time, tool string) (json.RawMessage, error) {
	doc := spdxDocument{
		SPDXID: "SPDXRef-DOCUMENT", Version: "SPDX-2.3", DataLicense: "CC0-1.0", Name: name,
		CreationInfo: spdxCreation{Created: created.UTC().Format("2006-01-02T15:04:05Z"), Creators: []string{"Tool: " + tool}, Comment: strings.Join(v.Notices, "\n")},
		Packages: []spdxPackage{{
			SPDXID: rootID, Name: name, DownloadLocation: unknown, LicenseConcluded: unknown, LicenseDeclared: unknown,
			CopyrightText: unknown, Purpose: "CONTAINER",
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", rootID}},
	}
	for _, p := range v.Packages {
		out := spdxPackage{
			SPDXID: p.id(), Name: p.fullName(), VersionInfo: p.versionInfo(), Supplier: or(p.Supplier, unknown), DownloadLocation: unknown,
			SourceInfo:       "found in /" + p.From,
			LicenseConcluded: unknown, LicenseDeclared: unknown, CopyrightText: unknown,
			ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", p.URL()}},
		}
		if u, err := url.Parse(p.Homepage); err == nil && u.IsAbs() {
			out.Homepage = p.Homepage
		}
		if p.License != "" { // not every manager's words are SPDX's
			out.LicenseComments = "the package says: " + p.License
		}
		for _, kind := range slices.Sorted(maps.Keys(p.Checksums)) {
			out.Checksums = append(out.Checksums, spdxChecksum{kind, p.Checksums[kind]})
		}
		doc.Packages = append(doc.Packages, out)
		doc.Relationships = append(doc.Relationships, spdxRelationship{rootID, "CONTAINS", out.SPDXID})
	}
	body, err := encode(doc)
	if err != nil {
		return nil, err
	}
	// A URI that no other document has: a UUID of the content (RFC 9562, version 8).
	sum := sha256.Sum256(body)
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	doc.DocumentNamespace = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	return encode(doc)
}

func (p Package) fullName() string {
	if p.Namespace != "" && (p.Type == "golang" || p.Type == "npm") {
		return p.Namespace + "/" + p.Name
	}
	return p.Name
}

// id names the package in its document: letters, digits, "." and "-" only.
func (p Package) id() string {
	sum := sha256.Sum256([]byte(p.URL() + "\x00" + p.From))
	clean := strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '.' || r == '-') {
			return r
		}
		return '-'
	}, p.Name)
	return fmt.Sprintf("SPDXRef-Package-%s-%s-%x", p.Type, clean, sum[:8])
}

func encode(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("write SPDX: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}
