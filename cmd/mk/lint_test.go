package main

import (
	"os"
	"strings"
	"testing"
)

// Every rule has its paragraph where warnings say that it is.
func TestRulesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../" + rulesPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range strings.Fields(`StageNameCasing FromAsCasing NoEmptyContinuation ConsistentInstructionCasing
		DuplicateStageName ReservedStageName JSONArgsRecommended MaintainerDeprecated UndefinedArgInFrom WorkdirRelativePath
		UndefinedVar MultipleInstructionsDisallowed LegacyKeyValueFormat InvalidBaseImagePlatform RedundantTargetPlatform
		SecretsUsedInArgOrEnv InvalidDefaultArgInFrom FromPlatformFlagConstDisallowed CopyIgnoredFile
		InvalidDefinitionDescription ExposeProtoCasing ExposeInvalidFormat`) {
		if !strings.Contains(string(page), "\n## "+rule+"\n") {
			t.Errorf("%s: no paragraph on %s", rulesPage, rule)
		}
	}
}
